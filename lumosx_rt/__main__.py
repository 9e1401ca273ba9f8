from lumosx_rt.cli import main

main()
