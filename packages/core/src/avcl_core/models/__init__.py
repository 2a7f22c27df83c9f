"""Networks: what sits at which site of the towers, who owns it, heads and routing. One file each."""
