"""All that knows pytest and xdist."""
