"""The agent's web page: containers, networks, services and their health, live.

``overview`` writes the document that it shows, ``pages`` serves it and the page's files. It stands
on ``api`` and the catalog.
"""
