"""Modules that the scripts of weft 0.1 import; ``bin/setup`` or ``weft install`` replaces those
scripts.
"""
