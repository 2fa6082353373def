"""A web front end that lets Identity log people in."""
