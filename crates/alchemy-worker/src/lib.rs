//! Turns alchemy forms of the Horde into vision calls and results into submissions. The only room that knows both.
