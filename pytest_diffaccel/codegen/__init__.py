"""From a task's sentence to a stand-alone script with the golden parameters.

Importing this package imports neither torch nor diffusers; the scripts it renders import nothing of this project.
"""
