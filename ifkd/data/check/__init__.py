"""`ifkd data check`: what a data set holds, what is wrong with it and how to mend it."""
