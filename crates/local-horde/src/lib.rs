//! A Horde on loopback: the server's half of API v2 with an object store and a fault proxy, in memory or as a program, for demos and tests. Knows no worker.
