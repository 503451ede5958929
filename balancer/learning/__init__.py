"""Learning costs: from a user's profile, from the compiler's reports, from measured stages."""
