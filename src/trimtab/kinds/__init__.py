"""The kinds of study, one folder each: its specification, its rounds, its analysis, and its page.

A kind is found by its slug, the name of its folder; a new folder here, or an entry point ``trimtab.kinds`` of another
package, is all it takes.
"""
