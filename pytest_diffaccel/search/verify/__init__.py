"""The fourth step of a search: a cell's winners, measured together and chosen again."""
