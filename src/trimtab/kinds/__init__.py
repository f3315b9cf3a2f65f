"""The kinds of study. The folder of a kind holds its specification, its rounds, its analysis and its page.

The slug of a kind is the name of its folder. A new folder here adds a kind; so does an entry point ``trimtab.kinds`` of
another package.
"""
