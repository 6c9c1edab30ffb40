"""Load tests: Locust drives a real system at given rates and a verdict says whether it kept its targets.

`scripts/loadtest --help` is the way in; docs/LOADTESTS.md says what is measured and how to write a workload.
"""
