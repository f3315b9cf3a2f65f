"""A comparison of final losses: arms on paired seeds at one learning rate, given or tuned, over several texts."""
