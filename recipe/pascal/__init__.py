"""What the P100 forces or allows. Imports torch alone, so it runs with any torch on any GPU."""
