"""What runs where: everything that a machine needs to optimize, serve and watch by itself.

bootstrap    `make up`, `make down`, `make status`
places       where each service answers, and what it finds in its environment
services     one service as a process: started, looked at, stopped
registering  what the Prefect server must know: pool, limit, deployments, automations; runs that are cancelled
automations  what is told to whom, as code
pages        our own pages, Prometheus' figures, and the place where alerts arrive
"""
