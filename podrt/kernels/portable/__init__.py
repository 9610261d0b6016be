"""The portable family: mma.sync and cp.async, on sm_80 and newer."""
