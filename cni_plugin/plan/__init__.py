"""What a driver or feature may look at, and how their parts become one plan."""
