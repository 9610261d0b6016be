"""What does run, and how SMs are shared: policies, schedules, what was measured for them."""
