"""The demo: 6,919 real purchases replayed through a real server, and every total compared with the file.

Pure: `purchases` (the file), `expectation` (what it comes to), `scenario` (what is asked), `answers` (what came back),
`comparison` (both side by side). With I/O: `promotion`, `delivery`, `books`, `process`, `crashes`, `run`. For people:
`report`.
"""
