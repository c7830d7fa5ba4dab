"""How far a campaign and a training grow: simulations by discrete events, fed with measured times."""
