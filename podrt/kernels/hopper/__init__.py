"""The Hopper family: wgmma and TMA, one CTA per SM (sm_90a)."""
