"""What drivers and features declare and may read, and how their parts become one plan."""
