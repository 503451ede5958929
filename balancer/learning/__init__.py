"""Learning costs: from profiles, from the compiler's reports, from measured stages."""
