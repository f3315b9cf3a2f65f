"""Where runs are carried out: in this process or in a pool of workers; one small protocol for those to come."""
