"""The caller's tensors, page tables and streams, of any framework, checked. Knows no kernel."""
