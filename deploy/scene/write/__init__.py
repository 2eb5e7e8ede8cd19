"""Write the results of a scene: files, pictures, run record, output folders and stores."""
