"""What the P100 forces or allows. Imports torch and nothing of ours, so it runs with any torch on any card."""
