"""Pack folders of graphs and weights into as few bytes as lose nothing."""
