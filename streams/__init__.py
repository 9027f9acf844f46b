"""The stream processors, one thin module each: what it reads, which pure function it calls, what it writes."""
