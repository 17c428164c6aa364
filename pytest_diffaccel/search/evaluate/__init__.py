"""The second step of a search: a candidate's pictures, and the proof that its methods act."""
