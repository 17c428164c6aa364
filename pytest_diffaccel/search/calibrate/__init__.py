"""The first step of a search: short runs that tell what each kind of step costs."""
