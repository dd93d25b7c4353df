"""Networks of policies and critics. Pure torch."""
