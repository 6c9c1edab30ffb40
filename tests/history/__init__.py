"""Is there an order of all calls that explains every answer? A checker of recorded histories for linearizability.

    history = History(prizes=[...], budgets=[...], rules=Rules(held_seconds_max=5))
    call = history.begin(Kind.ISSUE, promotion_id=..., prize_id=..., user_id=..., request_id=..., amount=...)
    ...
    history.end(call, Outcome.GRANTED, issuance_id=...)
    report = check(history)     # report.ok, print(report)
    history.save(path)          # python -m tests.history FILE checks it again

record.py      what is recorded
objects.py     from the history to its objects: prizes, budgets, wallets, holdings, requests
specs.py       what each object promises, one operation after another
checker.py     the search for an order; knows nothing of what it orders
report.py      verdicts, with the smallest window that explains a violation

Each object is checked by itself. That is enough for objects that are independent; a grant that touches several may be
at another moment in each, so an answer that only two objects together contradict is not found.
"""
