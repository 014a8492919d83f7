"""UNSIR: error-maximizing noise, impair, repair."""
