"""Reports for people, from what the stages leave."""
