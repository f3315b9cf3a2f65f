"""Adapters for other libraries: training loops and a harness. Each module needs the library it is named after."""
