"""Serving against other ways of putting the same program behind HTTP.

__main__   starts each in a process of its own, asks it from many clients, prints the table
contenders what runs in those processes
scoring    the program as MLflow's scoring server loads it
overhead   what serving adds to a cached reply
"""
