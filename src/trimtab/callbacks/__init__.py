"""Probes for other people's training loops; each file needs the library it is named after."""
