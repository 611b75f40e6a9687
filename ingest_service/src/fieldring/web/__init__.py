"""The two HTTP fronts: ``receive`` takes writes (ASGI), ``serve`` gives readings and pages (Flask).

They share no state and run as separate processes behind the load balancer's path routing, so a
heavy read never delays an acknowledgement. Neither decides what is promised or kept: that is ``accept``.
"""
