"""podrt inside frameworks and engines; each module needs its own, so none is imported from here."""
