"""Networks that policies and critics are made of. Pure torch."""
