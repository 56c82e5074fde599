"""HTTP services of the catalogue: their circuit breakers and gradual migrations."""
