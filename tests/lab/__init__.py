"""What the tests are made with: throw-away hosts and containers, real traffic, and the executables."""
