"""What a placed batch takes: the terms of a static plan, a clock, a bound."""
