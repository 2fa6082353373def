"""A service at the end of a chain: sees the user, and who acts for them."""
