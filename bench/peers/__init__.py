"""Other stream processors at the same work: on the same broker, from the same topic, on the same cores.

Each keeps per customer a session (30 minutes), counts per channel, open items and the last 50 entries; emits one
step per event; and writes the customer's document to Redis. `run` starts them and reads what they measured.
"""
