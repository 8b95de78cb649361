"""Did it learn, did it forget, and by how much: losses with intervals, instructions that rules can judge, choices."""
