"""What runs inside Locust's processes, under gevent: users, their calls, the phases. Import nothing of it elsewhere."""
