"""The paper's figures of a study, drawn for print: PNG, SVG and PDF, and the numbers behind each as CSV."""
