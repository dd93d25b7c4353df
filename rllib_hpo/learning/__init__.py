"""Learning: losses, the update and the replay. Pure torch; nothing here imports ray."""
