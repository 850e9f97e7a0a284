"""Attachments: the CNI executable, its drivers and features, the engine, the agent and the command line."""
