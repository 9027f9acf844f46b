-- Who has used an identifier: its owner's entry KEYS[1], and the hash KEYS[2] of whoever else did.
return {redis.call('GET', KEYS[1]), redis.call('HGETALL', KEYS[2])}
